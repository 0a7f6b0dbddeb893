//! The router: every event goes in here, the wanted state comes out.

use serde::{Deserialize, Serialize};

/// What the core knows, for status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {}
