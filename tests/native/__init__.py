"""What only the native backend has: threads of its own, a compiled library, instruction sets."""
