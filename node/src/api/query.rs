//! Queries in Kubo's form: `arg` as often as there are arguments, and options by name.

use axum::extract::RawQuery;

use super::call::ApiError;

/// The options and arguments of a request.
#[derive(Debug, Default)]
pub struct Arguments(Vec<(String, String)>);

impl Arguments {
    /// From the query of the address.
    pub fn parse(RawQuery(query): RawQuery) -> Arguments {
        let pairs = url::form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
        Arguments(pairs.into_owned().collect())
    }

    /// The last value of an option.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The same, owned.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// All arguments.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(key, _)| key == "arg").map(|(_, value)| value.as_str())
    }

    /// The first argument.
    pub fn first(&self) -> Result<&str, ApiError> {
        self.all().next().ok_or_else(|| ApiError::bad("the request has no argument: give it as ?arg=..."))
    }

    /// A switch; `default` if it is not given.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(default),
            Some("true" | "1" | "") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(ApiError::bad(format!("option {name} is true or false, not `{other}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_arguments() {
        let query = "arg=a%20b&arg=c&pin=true&unique=0&hash=sha2-256&bad=maybe";
        let arguments = Arguments::parse(RawQuery(Some(query.into())));
        assert_eq!(arguments.all().collect::<Vec<_>>(), ["a b", "c"]);
        assert_eq!(arguments.first().unwrap(), "a b");
        assert_eq!(arguments.get("hash"), Some("sha2-256"));
        assert!(arguments.flag("pin", false).unwrap());
        assert!(!arguments.flag("unique", true).unwrap());
        assert!(arguments.flag("other", true).unwrap());
        assert!(arguments.flag("bad", true).is_err());
        assert!(Arguments::default().first().is_err());
    }
}
