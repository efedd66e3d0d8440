//! Where tests have a process die, or a write fail, that writes a journal. See `berth_failpoint`.

berth_failpoint::points! {
    /// A group is encoded, nothing of it is written.
    APPEND_BEGUN = "journal:append:begun", Fallible;
    /// A group is written, not synced. An error counts as one of the sync.
    APPEND_WRITTEN = "journal:append:written", Fallible;
    /// A group is synced, and `synced` does not say so yet.
    APPEND_SYNCED = "journal:append:synced", Plain;
    /// The append is all done, nobody knows yet.
    APPEND_NOTED = "journal:append:noted", Plain;
    /// A write of any of the files, its first half done.
    WRITE_TORN = "journal:write:torn", Fallible;
    /// A write failed, and its remains are still there.
    UNDO_BEGUN = "journal:undo:begun", Fallible;
    /// The remains are cut, not synced.
    UNDO_CUT = "journal:undo:cut", Fallible;
    /// Is the segment full?
    SEGMENT_FULL = "journal:segment:full", Condition;
    /// A segment is there under its temporary name, empty.
    SEGMENT_CREATED = "journal:segment:created", Fallible;
    /// Its header is written, not synced.
    SEGMENT_WRITTEN = "journal:segment:written", Fallible;
    /// Its header is synced.
    SEGMENT_SYNCED = "journal:segment:synced", Fallible;
    /// It has its name, which is not durable.
    SEGMENT_RENAMED = "journal:segment:renamed", Plain;
    /// At open: what a crash left unfinished is cut, not synced.
    OPEN_CUT = "journal:open:cut", Fallible;
    /// At open: the last group is written again, not synced.
    OPEN_REWRITTEN = "journal:open:rewritten", Fallible;
    /// At open: everything that was replayed is durable.
    OPEN_SYNCED = "journal:open:synced", Plain;
    /// `synced` is there, empty.
    SYNCED_CREATED = "journal:synced:created", Fallible;
    /// `synced` is written, not synced.
    SYNCED_WRITTEN = "journal:synced:written", Fallible;
    /// `synced` says that the oldest segments may be missing.
    DROP_SAID = "journal:drop:said", Fallible;
    /// A segment is removed, which is not durable.
    DROP_REMOVED = "journal:drop:removed", Plain;
}
