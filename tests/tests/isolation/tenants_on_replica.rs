//! A hostile tenant does not slow down or read other tenants on the same control plane.
