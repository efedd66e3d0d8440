//! The file layer: the few things the journal asks of a directory, as a trait, so that tests can lose and tear writes.

mod directory;

use std::io;

pub use directory::StdStorage;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only [`File::size`] and [`File::read_at`] will be called.
    Read,
    /// Everything will be called.
    Write,
}

/// Why a directory was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds the lock.
    #[error("locked by another process")]
    Held,
    /// The lock could not be tried.
    #[error("could not be tried")]
    Io(#[source] io::Error),
}

/// One flat directory.
///
/// What is written, made, renamed or removed may be lost, in any part and order, until [`File::sync_data`] and
/// [`Storage::sync_directory`] return `Ok`.
pub trait Storage {
    /// A file of this directory.
    type File: File;

    /// Takes the exclusive lock on the directory, held until `self` is dropped. Never waits.
    ///
    /// # Errors
    /// [`LockError::Held`] when somebody else has it.
    fn lock(&self) -> Result<(), LockError>;

    /// The names of all files, in any order.
    ///
    /// # Errors
    /// What the directory says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of that name.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    fn open(&self, name: &str, access: Access) -> io::Result<Self::File>;

    /// Gives a file another name, in one step.
    ///
    /// # Errors
    /// What the directory says; both names are then as before.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names that were made, changed or removed durable.
    ///
    /// # Errors
    /// What was not durable before may or may not be so now.
    fn sync_directory(&self) -> io::Result<()>;

    /// 16 bytes that were never returned before and cannot be foretold.
    ///
    /// # Errors
    /// When the source of randomness cannot be read.
    fn fresh_id(&self) -> io::Result<[u8; 16]>;
}

/// One file, read and written by offset.
pub trait File {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the file layer says.
    fn size(&self) -> io::Result<u64>;

    /// Reads into `buffer`; returns how many bytes, 0 only at the end of the file.
    ///
    /// # Errors
    /// What the file layer says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes a part of `bytes`, at least its first byte; returns how many bytes.
    ///
    /// # Errors
    /// What the file layer says; any part may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// What the file layer says.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable (`fdatasync`).
    ///
    /// # Errors
    /// What was not durable before may or may not be so now, and never may be: do not try again.
    fn sync_data(&self) -> io::Result<()>;
}

/// Fills `buffer`; `Ok(false)` when the file ends before.
pub(crate) fn read_exact_at(file: &impl File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<bool> {
    while !buffer.is_empty() {
        match file.read_at(offset, buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => {
                buffer = buffer.get_mut(read..).unwrap_or_default();
                offset = offset.saturating_add(crate::format::wide(read));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Writes all of `bytes`.
pub(crate) fn write_all_at(file: &impl File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset = offset.saturating_add(crate::format::wide(written));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
