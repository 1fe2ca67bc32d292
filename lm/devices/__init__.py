"""Where arrays live and programs run: meshes, shardings, and what is specific to CPUs."""
