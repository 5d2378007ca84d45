//! Mutating admission runs a second time when a webhook or policy changed the object after others had seen it: then those
//! are called again that asked for it.

use std::collections::HashSet;

use serde_json::Value;

/// How far the mutating admission of one request has come.
#[derive(Default)]
pub(crate) struct Rounds {
    /// Whether this is the second run.
    pub again: bool,
    /// Whether a second run is wanted.
    pub wanted: bool,
    pub webhooks: Callers,
    pub policies: Callers,
}

/// Who was called, of one plug-in.
#[derive(Default)]
pub(crate) struct Callers {
    /// The object as the plug-in left it.
    last: Option<Value>,
    /// Called since the last change, and ready to be called again.
    called: HashSet<String>,
    due: HashSet<String>,
}

impl Callers {
    /// At the start of a run. What others changed since the first run concerns everybody.
    pub fn begin(&mut self, again: bool, object: &Value) {
        if again && self.last.as_ref() != Some(object) {
            self.changed();
        }
    }

    /// The object was changed: whoever was called before is due again.
    pub fn changed(&mut self) {
        self.due.extend(self.called.drain());
    }

    /// A caller that may be called again was called.
    pub fn called(&mut self, id: &str) {
        self.called.insert(id.to_owned());
    }

    pub fn is_due(&self, id: &str) -> bool {
        self.due.contains(id)
    }

    /// At the end of a run; the object is kept if a second one may follow.
    pub fn end(&mut self, object: &Value) {
        self.last = Some(object.clone());
    }
}
