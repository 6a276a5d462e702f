"""What runs inside a sandbox. The texts of these modules are handed in; no file of the harness exists there.

They need nothing but the standard library, and import nothing of mify but each other.
"""
