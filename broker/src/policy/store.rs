//! The set of policies in force.

use super::{Policies, PolicyErrors};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// Holds one valid set at all times.
#[derive(Debug)]
pub struct PolicyStore {
    current: RwLock<Arc<Policies>>,
}

/// What a reload did, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    pub before: String,
    pub after: String,
}

impl Reloaded {
    pub fn changed(&self) -> bool {
        self.before != self.after
    }
}

impl PolicyStore {
    pub fn new(policies: Policies) -> Self {
        Self { current: RwLock::new(Arc::new(policies)) }
    }

    /// The set in force. A decision takes it once, so that it is made by one set.
    pub fn current(&self) -> Arc<Policies> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the set of a folder in force. On any mistake in it, the old set stays.
    pub fn reload(&self, dir: &Path) -> Result<Reloaded, PolicyErrors> {
        let next = Arc::new(Policies::load(dir)?);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let reloaded = Reloaded { before: current.hash().to_owned(), after: next.hash().to_owned() };
        *current = next;
        Ok(reloaded)
    }
}
