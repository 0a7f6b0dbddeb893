//! Config and health in, buckets per policy out.

use std::collections::BTreeMap;

use config::model::Kick;
use config::units::{Family, WanId};
use serde::{Deserialize, Serialize};

use crate::state::{BucketKey, Buckets, FlowClass};

/// What the health of the lines amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    #[serde(with = "crate::state::as_pairs")]
    pub buckets: BTreeMap<BucketKey, Buckets>,
    /// Classes of flows that must not exist.
    #[serde(with = "crate::state::as_pairs")]
    pub dead: BTreeMap<FlowClass, Kick>,
    /// The line in table `ROUTER`: the first route of the router's own sockets.
    pub own: BTreeMap<Family, WanId>,
}
