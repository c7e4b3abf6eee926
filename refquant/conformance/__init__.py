"""The conformance kit: strategies that draw hard inputs, and properties that every format must hold.

Needs the `conform` extra (Hypothesis). `strategies` draws, `definitions` decodes one element at a time straight from
spec/, `properties` states what a format guarantees and checks it, `bits` compares.
"""
