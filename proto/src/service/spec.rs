//! The form in which people write a service: catalogue entries and `service apply -f`.
