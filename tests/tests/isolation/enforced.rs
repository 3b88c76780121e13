//! A change that is reported as enforced binds requests that began before it, certificates that expired and clocks that drifted.
