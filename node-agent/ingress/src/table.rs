//! Which host name leads to which cell: what the node agent pushed last. Looked up without allocating, because
//! strangers may ask for any name as often as they like.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use berth_shared::door::{ROUTES_MAX, Route};
use berth_shared::ids::{CellId, LABEL_BYTES_MAX};
use berth_shared::signing::PublicKey;

use crate::gate::{Gate, Shared};

/// Longest host name that is looked at (RFC 1035, section 2.3.4), without port.
const HOST_BYTES_MAX: usize = 255;

/// Where a host name leads.
#[derive(Debug)]
pub(crate) enum Place {
    /// Nothing is known yet.
    NoTable,
    /// Not a name of this installation.
    Elsewhere,
    /// A name below our domain where nobody lives.
    Nobody,
    /// A user's.
    Cell(Arc<Gate>),
}

#[derive(Debug)]
pub(crate) struct Table {
    shared: Arc<Shared>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Lower case; `None` before the first table.
    domain: Option<String>,
    ticket_key: Option<PublicKey>,
    by_slug: BTreeMap<String, Arc<Gate>>,
    by_cell: BTreeMap<CellId, Arc<Gate>>,
}

impl Known {
    fn set(&mut self, route: Route, shared: &Arc<Shared>) {
        let slug = route.slug.as_str().to_owned();
        let gate = match self.by_cell.get(&route.cell) {
            Some(gate) => {
                let gate = Arc::clone(gate);
                self.by_slug.retain(|_, other| other.cell != route.cell);
                gate.set(route);
                gate
            }
            None if self.by_cell.len() >= ROUTES_MAX => {
                tracing::error!(routes_max = ROUTES_MAX, "more routes than a node has");
                return;
            }
            None => {
                let gate = Gate::new(route, Arc::clone(shared));
                self.by_cell.insert(gate.cell, Arc::clone(&gate));
                gate
            }
        };
        self.by_slug.insert(slug, gate);
    }

    fn remove(&mut self, cell: CellId) {
        if let Some(gate) = self.by_cell.remove(&cell) {
            self.by_slug.retain(|_, other| other.cell != cell);
            gate.remove();
        }
    }
}

impl Table {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, known: RwLock::default() }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything. A cell that is in both keeps its open requests and held ones.
    pub(crate) fn replace(&self, domain: &str, ticket_key: Option<PublicKey>, routes: Vec<Route>) {
        let mut known = self.change();
        known.domain = Some(domain.trim_end_matches('.').to_ascii_lowercase());
        known.ticket_key = ticket_key;
        let gone: Vec<CellId> = known
            .by_cell
            .keys()
            .filter(|cell| routes.iter().all(|route| route.cell != **cell))
            .copied()
            .collect();
        for cell in gone {
            known.remove(cell);
        }
        for route in routes {
            known.set(route, &self.shared);
        }
    }

    pub(crate) fn set(&self, route: Route) {
        self.change().set(route, &self.shared);
    }

    pub(crate) fn remove(&self, cell: CellId) {
        self.change().remove(cell);
    }

    pub(crate) fn gate(&self, cell: CellId) -> Option<Arc<Gate>> {
        self.known().by_cell.get(&cell).cloned()
    }

    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        self.known().by_cell.values().cloned().collect()
    }

    pub(crate) fn ticket_key(&self) -> Option<PublicKey> {
        self.known().ticket_key
    }

    pub(crate) fn is_there(&self) -> bool {
        self.known().domain.is_some()
    }

    /// Where a `Host` header leads: `<slug>.<domain>`, any case, with or without a port and a trailing dot.
    pub(crate) fn find(&self, host: &str) -> Place {
        let known = self.known();
        let Some(domain) = known.domain.as_deref() else { return Place::NoTable };
        let Some(label) = label(host, domain) else { return Place::Elsewhere };
        let mut lower = [0_u8; LABEL_BYTES_MAX];
        let Some(lower) = lower.get_mut(..label.len()) else { return Place::Nobody };
        lower.copy_from_slice(label.as_bytes());
        lower.make_ascii_lowercase();
        let found = std::str::from_utf8(lower).ok().and_then(|slug| known.by_slug.get(slug));
        found.map_or(Place::Nobody, |gate| Place::Cell(Arc::clone(gate)))
    }
}

/// The first label of a host name of our domain: exactly one label in front of it.
pub(crate) fn label<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > HOST_BYTES_MAX {
        return None;
    }
    let dot = name.len().checked_sub(domain.len() + 1)?;
    let (label, rest) = name.split_at_checked(dot)?;
    let ours = rest.strip_prefix('.').is_some_and(|rest| rest.eq_ignore_ascii_case(domain));
    (ours && !label.is_empty() && !label.contains('.')).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_ours_only_with_exactly_one_label_in_front() {
        for (host, expected) in [
            ("demo.localhost", Some("demo")),
            ("DEMO.LocalHost:8080", Some("DEMO")),
            ("demo.localhost.", Some("demo")),
            ("demo.localhost.:80", Some("demo")),
            ("demo.localhost..", None),
            ("localhost", None),
            (".localhost", None),
            ("a.demo.localhost", None),
            ("demolocalhost", None),
            ("demo.localhost.evil.test", None),
            ("demo.localhost:", Some("demo")),
            ("demo.localhost:80x", None),
            ("demo.localhost:123456", None),
            ("[::1]:80", None),
            ("é.localhost", Some("é")),
            ("", None),
            ("éocalhost", None),
        ] {
            assert_eq!(label(host, "localhost"), expected, "{host}");
        }
    }
}
