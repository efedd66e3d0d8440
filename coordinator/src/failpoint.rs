//! Where tests have the coordinator die, beside the journal's own places. Debug builds only; see `berth_failpoint`.

berth_failpoint::points! {
    /// Commands are decided, nothing of it is written.
    STORE_DECIDED = "store:decided", Plain;
    /// What was decided is durable and seen by readers; whoever asked is not answered.
    STORE_PUBLISHED = "store:published", Plain;
    /// Are there enough events for a snapshot?
    SNAPSHOT_DUE = "store:snapshot:due", Condition;
    /// The note that the snapshots are being opened is there: a start that finds it throws them away.
    SHELF_OPENING = "shelf:opening", Plain;
    /// A snapshot is in the database, not flushed.
    SHELF_PUT = "shelf:put", Plain;
    /// An older snapshot is removed, not flushed.
    SHELF_REMOVED = "shelf:removed", Plain;
    /// First start: the operator key is in its file or shown, and not stored.
    INSTALL_KEYED = "install:keyed", Plain;
    /// A node's new desired state is made, not sent.
    PUSH_MADE = "push:made", Plain;
    /// A node's joining is durable, and the node is not told.
    JOIN_WRITTEN = "join:written", Plain;
    /// A file of the key store is replaced, durably; what it held is not overwritten.
    KEYSTORE_REPLACED = "keystore:replaced", Plain;
    /// What a file of the key store held is overwritten.
    KEYSTORE_OVERWRITTEN = "keystore:overwritten", Plain;
    /// The next fleet key has the name of the one in force, which is not durable.
    KEYSTORE_NEXT_TAKEN = "keystore:next:taken", Plain;
    /// A next fleet key that the store does not know of is gone, which is not durable.
    KEYSTORE_NEXT_UNDONE = "keystore:next:undone", Plain;
    /// That a prune begins is in the file, and its worker is not started.
    PRUNE_BEGINS = "prune:begins", Plain;
    /// The worker has ended: the repository has forgotten snapshots, and the journal knows nothing of it.
    PRUNE_ENDED = "prune:ended", Plain;
    /// What is gone is in the journal; that it was listed is not in the file.
    PRUNE_RECORDED = "prune:recorded", Plain;
}
