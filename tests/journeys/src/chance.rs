//! Moments that nobody chose, and that can be chosen again.

use std::time::Duration;

/// Random numbers from a seed, which is printed. `DAYPASS_TEST_SEED` gives it back.
#[derive(Debug)]
pub struct Chance(u64);

impl Default for Chance {
    fn default() -> Self {
        let given = std::env::var("DAYPASS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            use std::hash::{BuildHasher as _, RandomState};
            // Seeded by the system, anew in each process.
            RandomState::new().hash_one(std::process::id())
        });
        println!("DAYPASS_TEST_SEED={seed}");
        Self(seed.max(1))
    }
}

impl Chance {
    /// Somewhere in this span: xorshift64*.
    pub fn within(&mut self, span: Duration) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        span.mul_f64(f64::from(u32::try_from(drawn).unwrap()) / f64::from(1_u32 << 31))
    }
}
