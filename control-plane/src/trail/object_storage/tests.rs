use object_store::{ObjectStore, memory::InMemory};
use seks_audit::trail::layout;
use tempfile::TempDir;

use super::*;

struct World {
    store: Arc<InMemory>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        Self { store: Arc::default(), runtime: tokio::runtime::Runtime::new().unwrap() }
    }

    fn disk(&self, directory: &TempDir, cache_bytes: u64) -> io::Result<BucketDisk> {
        let bounds = Bounds { cache_bytes, pending_bytes: 100 };
        self.open(directory, self.store.clone(), bounds)
    }

    fn open(&self, directory: &TempDir, store: Arc<dyn ObjectStore>, bounds: Bounds) -> io::Result<BucketDisk> {
        let bucket = Bucket { store, prefix: "seks-audit/replica-a".into(), runtime: self.runtime.handle().clone() };
        BucketDisk::open(directory.path(), Directory::open(directory.path()).unwrap(), bucket, bounds)
    }

    /// The disk while no server answers.
    fn without_bucket(&self, directory: &TempDir, bounds: Bounds) -> io::Result<BucketDisk> {
        // The port of a listener that is closed.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let away = object_store::aws::AmazonS3Builder::new()
            .with_bucket_name("audit")
            .with_region("us-east-1")
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_access_key_id("id")
            .with_secret_access_key("secret")
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() });
        self.open(directory, Arc::new(away.build().unwrap()), bounds)
    }

    fn synchronize(&self, disk: &BucketDisk) -> io::Result<usize> {
        self.runtime.block_on(disk.synchronize())
    }
}

/// Writes a file as the trail writes a block.
fn write(disk: &BucketDisk, name: &str, contents: &[u8]) {
    let unfinished = format!("{name}.new");
    let mut file = disk.create(&unfinished).unwrap();
    file.append(contents).unwrap();
    file.sync().unwrap();
    disk.rename(&unfinished, name).unwrap();
}

/// A file with the ends of a block.
fn block(fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; layout::HEADER_BYTES as usize];
    bytes.extend_from_slice(&[fill + 1; 50]);
    bytes.extend_from_slice(b"directory");
    bytes.extend_from_slice(&99_u64.to_be_bytes());
    bytes.extend_from_slice(&9_u64.to_be_bytes());
    bytes
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_directory_reads_what_the_one_before_it_has_uploaded() {
    let (world, first, second) = (World::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let disk = world.disk(&first, 1 << 30).unwrap();
    write(&disk, "1.blk", b"one block");
    write(&disk, "pruned", b"0");
    disk.create("2.log").unwrap().append(b"not complete").unwrap();
    let mut growing = disk.create("1.adm").unwrap();
    growing.append(b"abc").unwrap();
    growing.sync().unwrap();
    assert_eq!(world.synchronize(&disk).unwrap(), 3);
    assert_eq!(world.synchronize(&disk).unwrap(), 0, "nothing is sent twice");
    growing.append(b"def").unwrap();
    growing.sync().unwrap();
    write(&disk, "pruned", b"1"); // of the same length
    assert_eq!(world.synchronize(&disk).unwrap(), 2);

    let lost = world.disk(&second, 1 << 30).unwrap();
    assert_eq!(lost.list().unwrap(), [("1.adm".into(), 6), ("1.blk".into(), 9), ("pruned".into(), 1)]);
    assert_eq!(lost.read("1.blk", 4, 3).unwrap(), b"blo");
    assert_eq!(lost.read("1.blk", 4, usize::MAX).unwrap(), b"block");
    assert!(lost.read("1.blk", 99, 4).unwrap().is_empty());
    assert_eq!(
        (lost.read_all("1.adm").unwrap(), lost.read_all("pruned").unwrap()),
        (b"abcdef".to_vec(), b"1".to_vec())
    );
    assert_eq!(lost.read_all("3.blk").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(names(&second), ["owner"], "small parts are not copied");
    for _ in 0..RANGES {
        lost.read("1.blk", 0, 4).unwrap();
    }
    assert_eq!(names(&second), ["1.blk", "owner"], "what is read often is");
    // The process with the old disk no longer writes there.
    write(&disk, "4.blk", b"late");
    assert_eq!(world.synchronize(&disk).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(world.disk(&first, 1 << 30).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn the_cache_is_bounded_and_what_is_removed_goes_from_the_bucket() {
    let (world, directory) = (World::new(), TempDir::new().unwrap());
    let disk = world.disk(&directory, 25).unwrap();
    for n in 1..=4 {
        write(&disk, &format!("{n}.blk"), &[n; 10]);
    }
    disk.read("1.blk", 0, 1).unwrap();
    assert_eq!(world.synchronize(&disk).unwrap(), 4);
    let left = names(&directory);
    assert!(left.len() == 3 && left.contains(&"1.blk".into()), "the ones that were read last stay: {left:?}");
    for n in 1..=4 {
        assert_eq!(disk.read_all(&format!("{n}.blk")).unwrap(), [n; 10]);
    }
    disk.remove("2.blk").unwrap();
    assert_eq!(disk.list().unwrap().len(), 3);
    world.synchronize(&disk).unwrap();
    let again = world.disk(&directory, 25).unwrap();
    assert_eq!(again.list().unwrap().len(), 3);
    assert!(again.read_all("2.blk").is_err());
}

#[test]
fn blocks_that_are_in_the_bucket_alone_are_known_while_it_is_away() {
    let (world, directory) = (World::new(), TempDir::new().unwrap());
    let (length, bounds) = (block(0).len() as u64, Bounds { cache_bytes: 0, pending_bytes: 1000 });
    let disk = world.open(&directory, world.store.clone(), bounds).unwrap();
    (1..=3).for_each(|n| write(&disk, &format!("{n}.blk"), &block(n)));
    assert_eq!((disk.pending_bytes(), world.synchronize(&disk).unwrap(), disk.pending_bytes()), (3 * length, 3, 0));
    let outlines = ["1.blk.outline", "2.blk.outline", "3.blk.outline", "owner"];
    assert_eq!(names(&directory), outlines, "nothing fits into the cache");
    drop(disk);
    // A new directory has them, too.
    let (lost, fetched) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    assert_eq!(
        world.without_bucket(&lost, bounds).err().unwrap().kind(),
        io::ErrorKind::Other,
        "nothing is known of it"
    );

    let disk = world.without_bucket(&directory, bounds).unwrap();
    assert_eq!(disk.list().unwrap(), [("1.blk".into(), length), ("2.blk".into(), length), ("3.blk".into(), length)]);
    let header = layout::HEADER_BYTES as usize;
    assert_eq!(disk.read("2.blk", 0, header).unwrap(), vec![2; header]);
    assert_eq!(disk.read("2.blk", length - 25, 9).unwrap(), b"directory");
    assert_eq!(disk.read("2.blk", length - 16, 16).unwrap(), block(2)[block(2).len() - 16..]);
    assert!(disk.read("2.blk", header as u64, 50).is_err(), "the rest is not here");
    // What is recorded meanwhile stays on the disk, up to the bound.
    write(&disk, "4.blk", &block(4));
    disk.remove("1.blk").unwrap();
    assert!(world.synchronize(&disk).is_err());
    assert!(disk.failing_seconds() > 0.0);
    disk.create("5.log").unwrap();
    write(&disk, "5.blk", &vec![5; 1000]);
    assert_eq!(disk.create("6.log").err().unwrap().kind(), io::ErrorKind::StorageFull);
    drop(disk);

    let disk = world.open(&directory, world.store.clone(), bounds).unwrap();
    world.synchronize(&disk).unwrap();
    assert_eq!((disk.failing_seconds(), disk.pending_bytes()), (0.0, 0));
    disk.create("6.log").unwrap();
    let again = world.open(&fetched, world.store.clone(), bounds).unwrap();
    let blocks: Vec<String> = again.list().unwrap().into_iter().map(|(name, _)| name).filter(|n| is_block(n)).collect();
    assert_eq!(blocks[blocks.len() - 4..], ["2.blk", "3.blk", "4.blk", "5.blk"]);
    assert_eq!(again.read_all("4.blk").unwrap(), block(4));
}

#[test]
fn a_bucket_that_comes_back_takes_what_has_waited() {
    // The start is without the bucket; the same process goes on with it.
    let (world, directory) = (World::new(), TempDir::new().unwrap());
    let bounds = Bounds { cache_bytes: 1 << 20, pending_bytes: 1000 };
    let disk = world.open(&directory, world.store.clone(), bounds).unwrap();
    write(&disk, "1.blk", &block(1));
    world.synchronize(&disk).unwrap();
    world.runtime.block_on(disk.0.bucket.put("0.blk", block(0))).unwrap();
    drop(disk);
    let mut disk = world.without_bucket(&directory, bounds).unwrap();
    write(&disk, "2.blk", &block(2));
    disk.remove("0.blk").unwrap();
    assert_eq!(disk.pending_bytes(), block(2).len() as u64, "the first is not known to be missing");
    Arc::get_mut(&mut disk.0).unwrap().bucket.store = world.store.clone();
    assert_eq!(world.synchronize(&disk).unwrap(), 1, "the first is there");
    let there = world.runtime.block_on(disk.0.bucket.list()).unwrap();
    assert_eq!(there.into_keys().collect::<Vec<_>>(), ["1.blk", "2.blk", "owner"]);
}

#[test]
fn the_log_of_the_newest_records_is_uploaded_too() {
    let (world, first, second) = (World::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let disk = world.disk(&first, 1 << 20).unwrap();
    let mut log = disk.create("1.log").unwrap();
    for part in [&b"one"[..], b"two"] {
        log.append(part).unwrap();
        log.sync().unwrap();
        assert_eq!(world.synchronize(&disk).unwrap(), 1);
    }
    let lost = world.disk(&second, 1 << 20).unwrap();
    assert_eq!(lost.read_all("1.log").unwrap(), b"onetwo");
    lost.remove("1.log").unwrap();
    world.synchronize(&lost).unwrap();
    assert!(world.disk(&second, 1 << 20).unwrap().list().unwrap().is_empty());
}

#[test]
fn wrong_values_name_their_key_and_no_text_has_a_credential() {
    let good = ObjectStorageConfig { bucket: "audit".into(), ..ObjectStorageConfig::default() };
    good.check().unwrap();
    let with = |change: fn(&mut ObjectStorageConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(with(|config| config.bucket = "a/b".into()).starts_with("bucket: "));
    assert!(with(|config| config.prefix = "../x".into()).starts_with("prefix: "));
    assert!(with(|config| config.region = String::new()).starts_with("region: "));
    assert!(with(|config| config.endpoint = "s3.example.com".into()).starts_with("endpoint: "));
    assert!(with(|config| config.endpoint = "http://s3.example.com".into()).contains("allow_plaintext"));
    assert!(with(|config| config.endpoint = "https://me:secret@s3.example.com".into()).contains("credentials_file"));
    assert!(with(|config| config.cache_bytes = 1).starts_with("cache_bytes: "));
    assert!(with(|config| config.pending_bytes = 1).starts_with("pending_bytes: "));
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("s3.json");
    std::fs::write(&file, r#"{"access_key_id": "AKIA", "secret_access_key": "very-secret", "more": 1}"#).unwrap();
    let config = ObjectStorageConfig { credentials_file: file, ..good };
    let refused = config.connect().err().unwrap().to_string();
    assert!(refused.starts_with("credentials_file: ") && !refused.contains("very-secret"), "{refused}");
}
