"""Where parameters come from and go to: checkpoints of runs, of Hugging Face and of PEFT."""
