use super::*;

const GIB: u64 = 1 << 30;

/// `count` MiB of the byte.
fn mebibytes(byte: u8, count: u64) -> impl Read + Send {
    io::repeat(byte).take(count << 20)
}

fn refused(bytes: &[u8], max_bytes: u64) -> (StreamError, u64) {
    let limits = UnpackLimits {
        max_bytes,
        max_ratio: 1000,
    };
    let (result, file) = unpack(bytes, &limits);
    (result.unwrap_err(), file.metadata().unwrap().blocks() * 512)
}

#[test]
fn ten_gibibytes_of_zeros_stop_at_the_limit() {
    for program in ["gzip", "bzip2", "xz"] {
        // 256 MiB, forty times: what one after the other unpacks to is one file.
        let part = filter(program, &["-1", "-c"], mebibytes(0, 256));
        let (error, allocated) = refused(&part.repeat(40), GIB / 8);
        assert!(
            matches!(error, StreamError::TooLarge { limit } if limit == GIB / 8),
            "{program}: {error:?}"
        );
        assert!(allocated < 1 << 20, "{program}: {allocated} bytes are allocated");
    }
}

#[test]
fn a_zip_bomb_stops_whether_it_tells_its_size_or_not() {
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("zeros"))
        .unwrap()
        .set_len(GIB / 4)
        .unwrap();
    run(directory.path(), "zip", &["-q", "-1", "known.zip", "zeros"]);
    let known = fs::read(directory.path().join("known.zip")).unwrap();
    let unknown = filter("zip", &["-q", "-1", "-", "-"], mebibytes(0, 256));
    for bytes in [known, unknown] {
        let (error, allocated) = refused(&bytes, 64 << 20);
        assert!(
            matches!(error, StreamError::TooLarge { limit: 67_108_864 }),
            "{error:?}"
        );
        assert!(allocated < 1 << 20);
    }
}

#[test]
fn nearly_nothing_does_not_become_nearly_everything() {
    for program in ["bzip2", "xz"] {
        let (error, allocated) = refused(&filter(program, &["-1", "-c"], mebibytes(b'A', 96)), GIB);
        assert!(
            matches!(error, StreamError::Bomb { limit: 1000 }),
            "{program}: {error:?}"
        );
        assert!(
            error.is_content() && allocated < 80 << 20,
            "{program}: {allocated} bytes are allocated"
        );
    }
}

#[test]
fn zeros_as_holes_are_no_bomb() {
    let (result, file) = unpack(&filter("xz", &["-1", "-c"], mebibytes(0, 256)), &GENEROUS);
    assert_eq!(result.unwrap(), GIB / 4);
    assert_eq!(file.metadata().unwrap().len(), GIB / 4);
}

#[test]
fn xz_with_a_huge_dictionary_is_refused() {
    let bytes = filter("xz", &["-c", "--lzma2=preset=0,dict=192MiB"], &b"small"[..]);
    let error = refused(&bytes, GIB).0;
    assert!(error.to_string().contains("Memory usage limit reached"), "{error}");
}
