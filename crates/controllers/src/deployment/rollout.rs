//! The two ways to roll out: step by step, or all old pods first.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{Controller, plan, spec_of, status};
use crate::kit::Result;
use crate::kit::pods::is_terminal;
use crate::replicaset::pods_of;

impl Controller {
    pub(super) async fn roll(
        &self,
        deployment: &mut Deployment,
        sets: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>> {
        let (new, mut old) = self.revisions(deployment, sets, true).await?;
        let Some(mut new) = new else { return Ok(None) };
        let spec = spec_of(deployment);
        let size = plan::size(&new);
        let wanted = if size > plan::desired(&spec) {
            plan::desired(&spec)
        } else {
            let total = size + old.iter().map(|set| plan::size(set)).sum::<i32>();
            plan::new_size(&spec, size, total)
        };
        if wanted != size {
            new = self.resize(deployment, &new, wanted).await?;
            return self.sync_progress(deployment, Some(&new), &old).await;
        }
        let smaller = plan::shrink(&spec, &new, &old);
        for (set, size) in &smaller {
            let scaled = self.resize(deployment, set, *size).await?;
            for one in old.iter_mut().filter(|one| one.metadata.uid == scaled.metadata.uid) {
                *one = scaled.clone();
            }
        }
        if smaller.is_empty()
            && status::is_complete(deployment, &deployment.status.clone().unwrap_or_default())
        {
            self.clean_up(deployment, &old).await?;
        }
        self.sync_progress(deployment, Some(&new), &old).await
    }

    pub(super) async fn recreate(
        &self,
        deployment: &mut Deployment,
        sets: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>> {
        let (new, mut old) = self.revisions(deployment, sets, false).await?;
        let mut scaled_down = false;
        for set in &mut old {
            if plan::size(set) > 0 {
                *set = self.resize(deployment, set, 0).await?;
                scaled_down = true;
            }
        }
        if scaled_down || self.old_pods_remain(&old) {
            return self.sync_progress(deployment, new.as_ref(), &old).await;
        }
        let new = match new {
            Some(new) => new,
            None => match self.revisions(deployment, sets, true).await?.0 {
                Some(new) => new,
                None => return Ok(None),
            },
        };
        let new = if plan::size(&new) == plan::desired(&spec_of(deployment)) {
            new
        } else {
            self.resize(deployment, &new, plan::desired(&spec_of(deployment))).await?
        };
        if status::is_complete(deployment, &deployment.status.clone().unwrap_or_default()) {
            self.clean_up(deployment, &old).await?;
        }
        self.sync_progress(deployment, Some(&new), &old).await
    }

    fn old_pods_remain(&self, old: &[Arc<ReplicaSet>]) -> bool {
        old.iter().any(|set| {
            set.status.as_ref().is_some_and(|status| status.replicas > 0)
                || pods_of(&self.pods, set).iter().any(|pod| !is_terminal(pod))
        })
    }
}
