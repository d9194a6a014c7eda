"""The catalogue: data only. `models/*.toml` holds published hyperparameters with their sources and claims."""
