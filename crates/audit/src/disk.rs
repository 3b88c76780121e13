//! The few operations of a directory that spool and trail use. Tests replace them by a disk that
//! tears, fills up and stalls.

#[cfg(test)]
pub(crate) mod simulated;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A directory of plain files.
pub trait Disk: Send + Sync + 'static {
    /// The names of its files, sorted, with their lengths.
    ///
    /// # Errors
    /// Of the file system.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Makes a file that does not exist yet.
    ///
    /// # Errors
    /// Of the file system.
    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>>;

    /// Reads at most `length` bytes from `offset`. Fewer at the end of the file.
    ///
    /// # Errors
    /// Of the file system.
    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Removes a file. A file that is gone is no error.
    ///
    /// # Errors
    /// Of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, replacing the file of that name, and makes that durable.
    ///
    /// # Errors
    /// Of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// Of the file system.
    fn read_all(&self, name: &str) -> io::Result<Vec<u8>> {
        self.read(name, 0, usize::MAX)
    }
}

/// A file that is being written, from its beginning.
pub trait Appender: Send {
    /// Appends all of `bytes`. After an error the file's end is undefined.
    ///
    /// # Errors
    /// Of the file system.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything appended durable, the file's name included.
    ///
    /// # Errors
    /// Of the file system. What was appended since the last success may be lost.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file that a process locks.
const LOCK: &str = "lock";

/// The right to write a directory.
#[derive(Debug)]
pub struct DirectoryLock(#[expect(dead_code, reason = "the lock ends when it is closed")] File);

/// A directory of the machine, readable by its owner alone.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Opens the directory. It is made when it is missing.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::read_dir(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Makes it this process's alone, for as long as the result is kept. The kernel takes the lock
    /// back when the process ends.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] while another process has it; of the file system.
    pub fn lock(&self) -> io::Result<DirectoryLock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.0.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The length of a file, in bytes.
    ///
    /// # Errors
    /// Of the file system.
    pub fn length(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.0.join(name))?.len())
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed meanwhile
                Err(error) => return Err(error),
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.0.join(name))?;
        Ok(Box::new(DirectoryFile { file, directory: Some(self.clone()) }))
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.0.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))?;
        self.sync()
    }
}

struct DirectoryFile {
    file: File,
    /// Synced once: with the first contents, the name.
    directory: Option<Directory>,
}

impl Appender for DirectoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(directory) = &self.directory {
            directory.sync()?;
            self.directory = None;
        }
        Ok(())
    }
}
