//! What Bitswap may serve: everything, except blocks that are being asked for in an audit.

use std::sync::{Arc, OnceLock};

use btfs_market::RenterService;
use btfs_p2p::{PeerId, ServePolicy};
use btfs_storage::Cid;

use super::courier::key_of;

/// Asks the renter, once there is one.
#[derive(Clone, Default)]
pub struct Withholding {
    renter: Arc<OnceLock<RenterService>>,
}

impl Withholding {
    /// From now on `renter` decides.
    pub fn decide_by(&self, renter: RenterService) {
        // The services start once; a second call would be a bug that changes nothing here.
        let _ = self.renter.set(renter);
    }
}

impl ServePolicy for Withholding {
    fn may_serve(&self, _peer: &PeerId, cid: &Cid) -> bool {
        self.renter.get().is_none_or(|renter| !renter.withheld(cid))
    }

    fn wanted(&self, peer: &PeerId, cid: &Cid) {
        if let (Some(renter), Some(key)) = (self.renter.get(), key_of(peer)) {
            renter.wanted(&key, cid);
        }
    }
}
