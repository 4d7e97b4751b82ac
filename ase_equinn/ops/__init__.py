"""The operators in which equivariant models spend their time: one function each, several implementations behind it."""
