//! What does the cryptography of TLS.

use std::fmt;

/// What does the cryptography.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// ring, with the feature `tls-ring`.
    #[cfg(feature = "tls-ring")]
    Ring,
    /// AWS-LC, with the feature `tls-aws-lc-rs`.
    #[cfg(feature = "tls-aws-lc-rs")]
    AwsLcRs,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Provider {
    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "tls-ring")]
            Self::Ring => "ring",
            #[cfg(feature = "tls-aws-lc-rs")]
            Self::AwsLcRs => "AWS-LC",
        }
    }
}
