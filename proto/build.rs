//! Compiles the `.proto` files with protox, so that no `protoc` is needed.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["seks/v1/types.proto", "seks/v1/admin.proto", "seks/v1/distribution.proto", "seks/v1/audit.proto"];
    let descriptors = protox::compile(files, ["."])?;
    // compile_fds() ignores file_descriptor_set_path(); gRPC reflection needs the descriptors.
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("seks.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".seks.v1.AuditUpload")
        .bytes(".seks.v1.Chunk.changes")
        .bytes(".seks.v1.Delta.changes")
        .bytes(".seks.v1.TableToken")
        .bytes(".seks.v1.TableGrant")
        // Requests and answers that carry a secret have a Debug of their own, in `wire.rs`.
        .skip_debug([
            "seks.v1.PutCredentialRequest",
            "seks.v1.IssuedToken",
            "seks.v1.AwsKeys",
            "seks.v1.AwsKeyPairRequest",
            "seks.v1.EnrollNodeResponse",
            "seks.v1.PageLink",
            "seks.v1.JoinRequest",
            "seks.v1.OpenSegmentsResponse",
        ])
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=seks");
    Ok(())
}
