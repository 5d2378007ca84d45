//! Tokens that another server knows: TokenReview by webhook, with a cache
//! (upstream: `plugin/pkg/authenticator/token/webhook`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::UserInfo;
use crate::read::Read;
use crate::webhook::{Client, Endpoint, Error, Target, Timeout};

/// Answers that are remembered.
const REMEMBERED: usize = 4096;
const LIMIT: Duration = Duration::from_secs(10);
/// Tries, and the pause before the second.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What the server said of a token.
#[derive(Clone, Debug)]
pub enum Answered {
    /// Whose it is, and for which audiences; none if the server said nothing of them.
    Holder(UserInfo, Vec<String>),
    Unknown(String),
}

/// The webhook.
pub struct TokenWebhook {
    endpoint: Arc<Endpoint>,
    /// `v1` or `v1beta1`.
    version: String,
    lifetime: Duration,
    cache: Mutex<HashMap<[u8; 32], (Instant, Answered)>>,
}

impl TokenWebhook {
    /// Answers are remembered for `lifetime`.
    pub fn new(client: &Client, target: &Target, version: &str, lifetime: Duration) -> Result<Self, Error> {
        let endpoint = client.endpoint(target)?;
        Ok(Self { endpoint, version: version.to_owned(), lifetime, cache: Mutex::default() })
    }

    /// Asks about a token. The error is text for people.
    pub async fn check(&self, token: &str, audiences: &[String]) -> Result<Answered, String> {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        for part in std::iter::once(token).chain(audiences.iter().map(String::as_str)) {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let key: [u8; 32] = digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some((until, answer)) = self.cache.lock().get(&key)
            && *until > Instant::now()
        {
            return Ok(answer.clone());
        }
        let mut spec = json!({"token": token});
        if !audiences.is_empty() && self.version != "v1beta1" {
            spec["audiences"] = json!(audiences);
        }
        let review = json!({
            "kind": "TokenReview",
            "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": {"creationTimestamp": null},
            "spec": spec,
            "status": {"user": {}},
        });
        let review = post(&self.endpoint, &review, TRIES, FIRST_PAUSE, LIMIT).await?;
        let answer = read(review.at("status"));
        let mut cache = self.cache.lock();
        if cache.len() >= REMEMBERED {
            let now = Instant::now();
            cache.retain(|_, (until, _)| *until > now);
            if cache.len() >= REMEMBERED {
                cache.clear();
            }
        }
        cache.insert(key, (Instant::now() + self.lifetime, answer.clone()));
        Ok(answer)
    }
}

/// Posts a review; a server that is overloaded or not reached is asked again, after growing pauses.
pub(crate) async fn post(
    endpoint: &Endpoint,
    review: &Value,
    tries: u32,
    first_pause: Duration,
    limit: Duration,
) -> Result<Value, String> {
    let mut pause = first_pause;
    let mut tried = 1;
    loop {
        let error = match endpoint.post(review, Timeout::of(limit)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let again = match &error {
            Error::Transport { .. } | Error::Timeout { .. } => true,
            Error::Answer { code, .. } => *code == 429 || *code >= 500,
            _ => false,
        };
        if !again || tried >= tries {
            tracing::warn!(%error, "a review webhook gave no answer");
            return Err(error.to_string());
        }
        tokio::time::sleep(pause).await;
        tried += 1;
        pause = pause.mul_f32(1.5);
    }
}

fn read(status: &Value) -> Answered {
    if status.at("authenticated").as_bool() != Some(true) {
        return Answered::Unknown(status.text("error").to_owned());
    }
    let user = status.at("user");
    let strings = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
    };
    let extra: BTreeMap<String, Vec<String>> =
        user.at("extra").as_object().into_iter().flatten().map(|(k, v)| (k.clone(), strings(v))).collect();
    let user = UserInfo {
        name: user.text("username").to_owned(),
        uid: user.text("uid").to_owned(),
        groups: strings(user.at("groups")),
        extra,
    };
    Answered::Holder(user, strings(status.at("audiences")))
}
