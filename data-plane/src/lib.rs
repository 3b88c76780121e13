//! data-plane
