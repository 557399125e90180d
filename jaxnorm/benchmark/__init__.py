"""Speed, memory and accuracy beside the installed peers: ``python -m jaxnorm.benchmark --help``."""
