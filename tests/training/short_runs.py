"""Parameters of runs that take a second."""

SHORT = {"architecture": "small-cnn-w8", "epochs": 2, "batch_size": 32, "crop_padding": 1}
ATTACK = {"eps": 0.1, "step_size": 0.05, "attack_steps": 2, "validation_attack_steps": 2}
