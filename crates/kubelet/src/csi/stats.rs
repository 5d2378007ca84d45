//! How much of a CSI volume is used, as its driver tells.

use std::path::Path;
use std::time::Duration;

use plugins::csi::NodeGetVolumeStatsRequest;
use plugins::csi::node_service_capability::rpc::Type as Can;
use plugins::csi::volume_usage::Unit;

use super::driver::call;
use super::record::Record;
use super::{Csi, CsiError};

/// How long statistics wait for a driver.
const PATIENCE: Duration = Duration::from_secs(5);

/// Use of a volume, in bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub inodes_used: u64,
}

impl Csi {
    /// The use of a pod's volume at the path where it has it; `None` if it is not one of CSI, or its driver does not tell.
    pub(crate) async fn usage(&self, path: &Path) -> Option<Usage> {
        match tokio::time::timeout(PATIENCE, self.ask_usage(path)).await {
            Ok(Ok(usage)) => usage,
            Ok(Err(error)) => {
                tracing::debug!(%error, path = %path.display(), "a driver does not tell a volume's use");
                None
            }
            Err(_) => {
                tracing::debug!(path = %path.display(), "a driver takes too long to tell a volume's use");
                None
            }
        }
    }

    async fn ask_usage(&self, path: &Path) -> Result<Option<Usage>, CsiError> {
        let Some(dir) = path.parent() else { return Ok(None) };
        let Some(record) = Record::read(dir)?.filter(|record| record.is_ready(&self.boot, path)) else {
            return Ok(None);
        };
        let driver = self.driver(record.driver()).await?;
        if !driver.can(Can::GetVolumeStats) {
            return Ok(None);
        }
        let request = NodeGetVolumeStatsRequest {
            volume_id: record.handle().to_owned(),
            volume_path: path.to_string_lossy().into_owned(),
            staging_target_path: String::new(),
        };
        let answer = call!(driver, node_get_volume_stats, request)?;
        let mut usage = Usage::default();
        let whole = |number: i64| u64::try_from(number).unwrap_or(0);
        for one in answer.usage {
            let (total, free, used) = (whole(one.total), whole(one.available), whole(one.used));
            match Unit::try_from(one.unit) {
                Ok(Unit::Bytes) => (usage.capacity, usage.available, usage.used) = (total, free, used),
                Ok(Unit::Inodes) => {
                    (usage.inodes, usage.inodes_free, usage.inodes_used) = (total, free, used);
                }
                _ => {}
            }
        }
        Ok(Some(usage))
    }
}
