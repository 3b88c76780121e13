//! Clients without a token, slow readers and failing dependencies do not stop service for others.
