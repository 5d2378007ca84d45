//! Kubernetes quantities: exact decimal numbers with decimal, binary or exponent suffixes.
