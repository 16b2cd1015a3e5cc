// Verifies chains as Java's PKIX does, and the purpose by the leaf's extended key usage. Cases as in verify.go; the name
// is not compared, which is the business of a TLS connection there.

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.security.cert.CertPathValidator;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.util.Date;
import java.util.List;
import java.util.Set;

public class Verify {
    static X509Certificate read(String path) throws Exception {
        try (InputStream in = new FileInputStream(path)) {
            return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
    }

    static void verify(String[] field) throws Exception {
        X509Certificate leaf = read(field[2]);
        PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(read(field[0]), null)));
        parameters.setRevocationEnabled(false);
        parameters.setDate(new Date(Long.parseLong(field[3]) * 1000));
        X509CertSelector selector = new X509CertSelector();
        selector.setExtendedKeyUsage(Set.of(field[4].equals("client") ? "1.3.6.1.5.5.7.3.2" : "1.3.6.1.5.5.7.3.1"));
        parameters.setTargetCertConstraints(selector);
        CertPathValidator.getInstance("PKIX").validate(
            CertificateFactory.getInstance("X.509").generateCertPath(List.of(leaf, read(field[1]))), parameters);
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                verify(line.split("\t"));
                System.out.println("accepted");
            } catch (Exception refused) {
                System.out.println("refused: " + refused.getMessage());
            }
        }
    }
}
