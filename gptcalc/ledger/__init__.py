"""Answers: pure functions from a spec to a ledger of lines. No line computes for display, none prints."""
