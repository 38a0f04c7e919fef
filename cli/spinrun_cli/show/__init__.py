"""What a person sees: pure functions from data to text and pictures. Nothing here reads a file or talks to anybody."""
