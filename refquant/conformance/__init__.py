"""The conformance kit: strategies that draw hard inputs, and properties that every format must hold."""
