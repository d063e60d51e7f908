//! Lists that come in pages.

use super::Client;
use crate::failure::Failure;
use daypass_protocol::api::Page;
use serde::de::DeserializeOwned;

/// What was read of a list.
#[derive(Debug)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// There are more than were wanted.
    pub more: bool,
}

impl Client {
    /// Reads pages until `limit` items are there; 0 for all of them.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Listed<T>, Failure> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            query.extend(after.clone().map(|after| ("after", after)));
            let page: Page<T> = self.get(path, &query).await?;
            let was_empty = page.items.is_empty();
            items.extend(page.items);
            if limit > 0 && items.len() >= limit {
                let more = items.len() > limit || page.next.is_some();
                items.truncate(limit);
                return Ok(Listed { items, more });
            }
            // A page that leads nowhere would be asked for without end.
            if page.next.is_none() || page.next == after || was_empty {
                return Ok(Listed { items, more: false });
            }
            after = page.next;
        }
    }
}
