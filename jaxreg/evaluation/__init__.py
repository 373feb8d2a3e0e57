"""The protocol, the harness that follows it, and its reports."""
