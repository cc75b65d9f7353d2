"""The engine directory: its manifest, how it is written, how it is checked before anything is loaded."""
