//! The session cookie: who, since when, until when, and a MAC under a key that only this node's ingress has.
//!
//! Nothing is stored per session. A session ends when it expires, or when the user's `sessions_valid_from` passes it.

use std::path::Path;

use berth_daemon::exit::Exit;
use berth_daemon::secret_file::{self, SecretFileError};
use berth_node_agent_core::front;
use berth_node_agent_core::may_wake::Session;
use berth_shared::ids::UserId;
use berth_shared::time::UnixMs;
use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac};
use http::HeaderValue;
use sha2::Sha256;

const KEY_FILE: &str = "session.key";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
/// User id, two times.
const BODY_BYTES: usize = 16 + 8 + 8;
/// Domain of the MAC; a new form of the cookie gets a new one.
const DOMAIN: &[u8] = b"berth/1 session cookie\0";

/// Cookies of our name that are tried in one request: other hosts of the domain can set some, too.
pub(crate) const COOKIES_TRIED_MAX: usize = 8;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the session key could not be drawn")]
    Random(#[source] getrandom::Error),
    #[error("the session key could not be read or written")]
    File(#[from] SecretFileError),
    #[error("the session key has {0} bytes, not {KEY_BYTES}")]
    Length(usize),
}

impl KeyError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Random(_) => Exit::Unavailable,
            Self::File(error) => error.exit(),
            Self::Length(_) => Exit::DataCorrupt,
        }
    }
}

/// Signs and reads session cookies.
pub(crate) struct Sessions {
    keyed: Hmac<Sha256>,
}

impl Sessions {
    /// Reads the key of the state folder, or makes it at the first start.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(KEY_FILE);
        if !path.exists() {
            let mut key = [0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(KeyError::Random)?;
            secret_file::write_secret_file(&path, &key)?;
        }
        let key = secret_file::read_secret_file(&path, KEY_BYTES)?;
        let key = key.expose_secret();
        if key.len() != KEY_BYTES {
            return Err(KeyError::Length(key.len()));
        }
        Ok(Self::with_key(key))
    }

    pub(crate) fn with_key(key: &[u8]) -> Self {
        Self { keyed: Hmac::new_from_slice(key).expect("HMAC takes a key of any length") }
    }

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(DOMAIN);
        mac.update(body);
        mac
    }

    /// The cookie's value.
    pub(crate) fn seal(&self, session: &Session) -> String {
        let mut bytes = Vec::with_capacity(BODY_BYTES + MAC_BYTES);
        bytes.extend_from_slice(session.user.bytes());
        bytes.extend_from_slice(&session.issued_at.0.to_be_bytes());
        bytes.extend_from_slice(&session.expires_at.0.to_be_bytes());
        let mac = self.mac(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// Reads a cookie's value; whether the session still holds is the caller's to judge.
    pub(crate) fn read(&self, value: &[u8]) -> Option<Session> {
        let mut bytes = [0; BODY_BYTES + MAC_BYTES];
        if value.len() > 128 || BASE64URL_NOPAD.decode_len(value.len()).ok()? != bytes.len() {
            return None;
        }
        BASE64URL_NOPAD.decode_mut(value, &mut bytes).ok()?;
        let (body, mac) = bytes.split_at_checked(BODY_BYTES)?;
        self.mac(body).verify_slice(mac).ok()?;
        let (user, times) = body.split_first_chunk::<16>()?;
        let (issued_at, expires_at) = times.split_first_chunk::<8>()?;
        Some(Session {
            user: UserId::from_random(*user),
            issued_at: UnixMs(u64::from_be_bytes(*issued_at)),
            expires_at: UnixMs(u64::from_be_bytes(*expires_at.first_chunk()?)),
        })
    }

    /// The header that sets the cookie.
    pub(crate) fn set_cookie(&self, session: &Session, secure: bool) -> HeaderValue {
        let age = session.expires_at.since(session.issued_at).0 / 1000;
        header(&self.seal(session), age, secure)
    }
}

/// The header that takes the cookie away.
pub(crate) fn clear_cookie(secure: bool) -> HeaderValue {
    header("", 0, secure)
}

fn header(value: &str, max_age_s: u64, secure: bool) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}",
        front::SESSION_COOKIE
    );
    HeaderValue::from_str(&text).expect("base64url, digits and the fixed words above are all visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn session() -> Session {
        Session { user: UserId::from_random([3; 16]), issued_at: UnixMs(7), expires_at: UnixMs(60_007) }
    }

    #[test]
    fn a_cookie_is_read_back_under_its_key_only_and_not_when_altered() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sessions = Sessions::open(one.path()).unwrap();
        let value = sessions.seal(&session());
        assert_eq!(sessions.read(value.as_bytes()), Some(session()));
        assert_eq!(Sessions::open(other.path()).unwrap().read(value.as_bytes()), None);
        assert_eq!(Sessions::open(one.path()).unwrap().read(value.as_bytes()), Some(session()));
        for at in 0..value.len() {
            let mut altered = value.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(sessions.read(&altered), None, "byte {at}");
            assert_eq!(sessions.read(&value.as_bytes()[..at]), None);
        }
    }

    #[test]
    fn the_key_is_for_its_owner_alone_and_one_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Sessions::open(folder.path()).unwrap();
        let path = folder.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Sessions::open(folder.path()), Err(KeyError::File(_))));
    }

    #[test]
    fn the_cookie_is_for_the_browser_alone_and_secure_behind_tls() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(folder.path()).unwrap();
        let header = sessions.set_cookie(&session(), true);
        let text = header.to_str().unwrap();
        assert!(
            text.starts_with("berth_session=")
                && text.contains("; Max-Age=60; HttpOnly; SameSite=Lax; Secure")
        );
        assert!(!sessions.set_cookie(&session(), false).to_str().unwrap().contains("Secure"));
        assert!(clear_cookie(false).to_str().unwrap().contains("Max-Age=0"));
    }
}
