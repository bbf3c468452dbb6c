import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.X509Certificate;
import java.util.HexFormat;
import java.util.List;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLEngineResult;
import javax.net.ssl.SSLException;
import javax.net.ssl.SSLPeerUnverifiedException;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

/**
 * The other end of an agent link, with Java's TLS: messages over chunks over TLS 1.2, as agent-protocol.md §1 has it.
 *
 * <pre>
 * client HOST PORT                  connects, and plays the script
 * agent HOST PORT                   likewise, then says yes to every request until the server closes
 * server PORT KEYSTORE.p12 PASSWORD plays the script on each connection, one after the other; prints its port
 * </pre>
 *
 * The script comes on standard input: a line of hex is a message to be sent, `expect N` waits for N messages. At its end
 * the socket is closed, without a TLS good-bye. Each message that arrives is a line of hex on standard output.
 */
final class ChunkPeer {
    static final int HEADER = 4, RECORD_HEADER = 5, MAX_CHUNK = 18_000, FOLLOWING = 1 << 16;

    final Socket socket;
    final DataInputStream in;
    final SSLEngine engine;

    ChunkPeer(Socket socket, SSLEngine engine) throws IOException {
        this.socket = socket;
        this.in = new DataInputStream(socket.getInputStream());
        this.engine = engine;
    }

    public static void main(String... args) throws Exception {
        List<String> script = new BufferedReader(new InputStreamReader(System.in)).lines().toList();
        // The version is the client's: for the server end this name means 1.2 and newer, as at the real server.
        SSLContext tls = SSLContext.getInstance("TLSv1.2");
        switch (args[0]) {
            case "client", "agent" -> {
                tls.init(null, new TrustManager[] {new TrustAll()}, null);
                SSLEngine engine = tls.createSSLEngine(args[1], Integer.parseInt(args[2]));
                engine.setUseClientMode(true);
                serve(new Socket(args[1], Integer.parseInt(args[2])), engine, script, args[0].equals("agent"));
            }
            case "server" -> {
                tls.init(keys(args[2], args[3].toCharArray()), new TrustManager[] {new TrustAll()}, null);
                try (var listener = new ServerSocket(Integer.parseInt(args[1]), 50, InetAddress.getLoopbackAddress())) {
                    print("listening " + listener.getLocalPort());
                    while (true) {
                        Socket socket = listener.accept();
                        SSLEngine engine = tls.createSSLEngine();
                        engine.setUseClientMode(false);
                        engine.setWantClientAuth(true);
                        serve(socket, engine, script, false);
                    }
                }
            }
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static void serve(Socket socket, SSLEngine engine, List<String> script, boolean answers) throws IOException {
        try (socket) {
            var peer = new ChunkPeer(socket, engine);
            peer.handshake();
            print("established " + engine.getSession().getCipherSuite());
            print("peer " + peer.name());
            for (String line : script) {
                if (line.startsWith("expect ")) {
                    for (int count = Integer.parseInt(line.substring(7)); count > 0; count--) {
                        print(HexFormat.of().formatHex(peer.receive()));
                    }
                } else {
                    peer.send(HexFormat.of().parseHex(line));
                }
            }
            while (answers) {
                byte[] message = peer.receive();
                print(HexFormat.of().formatHex(message));
                if ((message[3] & 1) == 1) {
                    peer.send(yes(message));
                }
            }
        } catch (EOFException | SocketException end) {
            print("closed");
        } catch (SSLException error) {
            print("broken " + error);
        }
    }

    static void print(String line) {
        System.out.println(line);
        System.out.flush();
    }

    /** Nothing but TLS records in both directions. */
    void handshake() throws IOException {
        ByteBuffer out = ByteBuffer.allocate(engine.getSession().getPacketBufferSize());
        ByteBuffer nothing = ByteBuffer.allocate(engine.getSession().getApplicationBufferSize());
        ByteBuffer record = ByteBuffer.allocate(0);
        engine.beginHandshake();
        while (true) {
            switch (engine.getHandshakeStatus()) {
                case NEED_WRAP -> {
                    engine.wrap(ByteBuffer.allocate(0), out.clear());
                    socket.getOutputStream().write(out.array(), 0, out.position());
                }
                case NEED_UNWRAP -> {
                    if (!record.hasRemaining()) {
                        record = ByteBuffer.wrap(record());
                    }
                    engine.unwrap(record, nothing);
                }
                case NEED_TASK -> engine.getDelegatedTask().run();
                default -> {
                    return;
                }
            }
        }
    }

    byte[] record() throws IOException {
        byte[] header = in.readNBytes(RECORD_HEADER);
        if (header.length < RECORD_HEADER) {
            throw new EOFException();
        }
        int length = ByteBuffer.wrap(header).getShort(3) & 0xffff;
        byte[] payload = new byte[length];
        in.readFully(payload);
        return ByteBuffer.allocate(RECORD_HEADER + length).put(header).put(payload).array();
    }

    /** One record to a chunk. */
    void send(byte[] message) throws IOException {
        ByteBuffer plaintext = ByteBuffer.wrap(message);
        ByteBuffer chunk = ByteBuffer.allocate(HEADER + engine.getSession().getPacketBufferSize());
        do {
            chunk.clear().position(HEADER);
            engine.wrap(plaintext, chunk);
            int length = chunk.position() - HEADER;
            chunk.putInt(0, plaintext.hasRemaining() ? length | FOLLOWING : length);
            socket.getOutputStream().write(chunk.array(), 0, chunk.position());
        } while (plaintext.hasRemaining());
    }

    byte[] receive() throws IOException {
        var message = new ByteArrayOutputStream();
        ByteBuffer plaintext = ByteBuffer.allocate(engine.getSession().getApplicationBufferSize());
        int header;
        do {
            header = in.readInt();
            short length = (short) header;
            if (length < 0 || length > MAX_CHUNK) {
                throw new SSLException("chunk of " + length);
            }
            byte[] bytes = new byte[length];
            in.readFully(bytes);
            ByteBuffer records = ByteBuffer.wrap(bytes);
            while (records.hasRemaining()) {
                SSLEngineResult result = engine.unwrap(records, plaintext.clear());
                if (result.getStatus() != SSLEngineResult.Status.OK) {
                    throw new SSLException("record " + result.getStatus());
                }
                message.write(plaintext.array(), 0, plaintext.position());
            }
        } while ((header & FOLLOWING) != 0);
        return message.toByteArray();
    }

    String name() {
        try {
            return ((X509Certificate) engine.getSession().getPeerCertificates()[0]).getSubjectX500Principal().getName();
        } catch (SSLPeerUnverifiedException none) {
            return "without certificate";
        }
    }

    /** The request's header with FROM_SERVER inverted and without REQUEST, CONTROL, COMPRESSED; success. */
    static byte[] yes(byte[] request) {
        String answer = "{'com.cloud.agent.api.Answer':{'result':true,'contextMap':{},'wait':0,'bypassHostMaintenance':false}}";
        byte[] body = ("[" + answer.replace('\'', '"') + "]").getBytes(StandardCharsets.UTF_8);
        ByteBuffer message = ByteBuffer.allocate(40 + body.length).put(request, 0, 40).put(body);
        int flags = (request[3] ^ 0x20) & ~(0x01 | 0x40 | 0x80);
        return message.put(3, (byte) flags).putInt(12, body.length).array();
    }

    static KeyManager[] keys(String path, char[] password) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (var file = new FileInputStream(path)) {
            store.load(file, password);
        }
        var keys = KeyManagerFactory.getInstance("SunX509");
        keys.init(store, password);
        return keys.getKeyManagers();
    }

    static final class TrustAll implements X509TrustManager {
        public void checkClientTrusted(X509Certificate[] chain, String type) {}

        public void checkServerTrusted(X509Certificate[] chain, String type) {}

        public X509Certificate[] getAcceptedIssuers() {
            return new X509Certificate[0];
        }
    }
}
