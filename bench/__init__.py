"""The benchmark that README quotes: `python -m bench`."""
