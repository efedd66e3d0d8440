//! Where tests have a process die that makes a key file. See `berth_failpoint`.

berth_failpoint::points! {
    /// The key file is there under its temporary name, empty.
    KEY_CREATED = "key:created", Plain;
    /// It is written, not synced.
    KEY_WRITTEN = "key:written", Plain;
    /// It is synced and has not its name.
    KEY_SYNCED = "key:synced", Plain;
    /// It has its name, which is not durable.
    KEY_NAMED = "key:named", Plain;
    /// It has the name of another one, which it replaces; that is not durable.
    KEY_REPLACED = "key:replaced", Plain;
    /// A key file is removed, which is not durable.
    KEY_REMOVED = "key:removed", Plain;
}
