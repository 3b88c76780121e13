//! Further hostile inputs at the HTTP edge, each with the answer that is right.
