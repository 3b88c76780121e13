//! Random jitter for pauses, so that clients that failed together do not retry together. Not for
//! secrets.

/// Uniform in [0, 1). 0.5 when the system has no randomness.
#[must_use]
pub fn fraction() -> f64 {
    #[cfg(feature = "simulation")]
    if let Some(random) = seks_simulated_host::random() {
        return (random >> 32) as f64 / (f64::from(u32::MAX) + 1.0);
    }
    let mut bytes = [0_u8; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
