"""What is said to be left out of a corpus is what is left out."""

import pyarrow as pa
import pyarrow.parquet as pq
from common import documents

from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.corpus_counts import count_documents
from adept_ray.data.packing import DOMAIN_SPLITS, PackingPlan


def test_every_document_is_counted_where_it_belongs(tmp_path):
    """Blank ones nowhere; repeated ones, those of the other corpus and nearly equal ones once each."""

    def write(name, *parts):
        files = [tmp_path / f"{name}-{number}.parquet" for number in range(len(parts))]
        for file, texts in zip(files, parts, strict=True):
            pq.write_table(pa.table({"text": texts}), file)
        return CorpusFiles(tuple(files), name, name, "")

    texts = [f"{text} {text.lower()}" for text in documents(20)]
    general = write("general", texts[:5])
    domain = write("domain", [*texts, f"  {texts[9]}\n", "", None], [texts[9], texts[3], f"{texts[7]} So é."])
    plan = PackingPlan(domain, DOMAIN_SPLITS, None, 32, 0, (general,))
    size = max(len(text.encode()) for text in texts)
    expected = {"documents": 24, "repeated": 3, "in_earlier": 5, "near": 0, "longest": size}
    found = count_documents(plan, tmp_path)
    assert found | {"longest": 0} == expected | {"longest": 0} and found["longest"] >= size
    near = PackingPlan(domain, DOMAIN_SPLITS, None, 32, 0, (general,), near_duplicates=0.9)
    assert count_documents(near, tmp_path) == found | {"near": 1}
