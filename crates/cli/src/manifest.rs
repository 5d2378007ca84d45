//! Manifests: objects in YAML or JSON, out of files, folders and standard input, with the place of each for messages.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;

/// One object and the file it stands in.
#[derive(Debug)]
pub(crate) struct Object {
    pub path: String,
    pub value: Value,
}

impl Object {
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }
}

/// All objects of the files; lists are taken apart.
pub(crate) fn read(paths: &[PathBuf], recursive: bool) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            parse("STDIN", &text, &mut objects)?;
            continue;
        }
        for file in files(path, recursive)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|source| Error::File { path: file.clone(), source })?;
            parse(&file.display().to_string(), &text, &mut objects)?;
        }
    }
    if objects.is_empty() {
        return Err(Error::Usage("no objects passed; the files hold none".into()));
    }
    Ok(objects)
}

fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                found.extend(files(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            found.push(entry);
        }
    }
    Ok(found)
}

fn parse(path: &str, text: &str, objects: &mut Vec<Object>) -> Result<(), Error> {
    let wrong = |reason: String| Error::Manifest { path: path.to_owned(), reason };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| wrong(error.to_string()))?;
    for value in documents.into_iter().filter(|value| !value.is_null()) {
        let Some(fields) = value.as_object() else {
            return Err(wrong("a document is not an object with apiVersion and kind".into()));
        };
        for field in ["apiVersion", "kind"] {
            if !fields.get(field).is_some_and(|value| value.is_string()) {
                return Err(wrong(format!(
                    "an object has no {field}; it says which API the object belongs to"
                )));
            }
        }
        let list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        match value.get("items").and_then(Value::as_array) {
            Some(items) if list => {
                objects
                    .extend(items.iter().map(|item| Object { path: path.to_owned(), value: item.clone() }));
            }
            _ => objects.push(Object { path: path.to_owned(), value }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<String>, String> {
        let mut objects = Vec::new();
        parse("file.yaml", text, &mut objects).map_err(|error| error.to_string())?;
        Ok(objects.iter().map(|object| format!("{}/{}", object.text("/kind"), object.name())).collect())
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n# nothing\n---\n\
                    apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Secret, metadata: {name: b}}]\n";
        assert_eq!(check(text), Ok(vec!["Pod/a".into(), "Secret/b".into()]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let error = check("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n wrong: 1\n")
            .expect_err("bad indentation");
        assert!(error.contains("file.yaml") && error.contains("line 5"), "{error}");
        let error = check("kind: Pod\n").expect_err("no apiVersion");
        assert!(error.contains("apiVersion"), "{error}");
    }
}
