"""Classical terms with the contract of a model: `Potential([model, term])` adds them."""
