"""Plans of a config on a slice: its steps are compiled for devices that are not there, and what the
compiler says of memory, arithmetic and communication is put beside what the devices can do.
"""
