//! How people reach an installation.

use serde::Deserialize;

/// What stands in front of host names in browsers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP: on one machine.
    Http,
    /// TLS, in front of the ingress. Cookies are then `Secure`.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// `scheme://host`, with the port where it is given and not the scheme's own.
    pub fn origin(self, host: &str, port: Option<u16>) -> String {
        let usual = match self {
            Self::Http => 80,
            Self::Https => 443,
        };
        match port.filter(|port| *port != usual) {
            Some(port) => format!("{}://{host}:{port}", self.as_str()),
            None => format!("{}://{host}", self.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_leaves_the_usual_port_out() {
        assert_eq!(Scheme::Https.origin("a.b", Some(443)), "https://a.b");
        assert_eq!(Scheme::Http.origin("a.b", Some(443)), "http://a.b:443");
        assert_eq!(Scheme::Http.origin("a.b", None), "http://a.b");
    }
}
