"""The catalogue: data only. `models/*.toml` holds published hyperparameters, `claims/*.toml` what was said of them."""
