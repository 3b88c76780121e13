//! A program that runs as the same user as SEKS, as a child of `seks run`, gets neither a credential nor administration.
