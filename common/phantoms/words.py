"""Words and phrases of phantom reports, as data for `phantom_text`.

Fields in braces: side, site ("lower lobe"), adjective ("lingular"), degree ("mild"), adverb ("mildly"). In PRESENT and
POSSIBLE, {a} is the phrase with its article, {A} the same at the start of a sentence, {bare} has none.
"""

# Phrases for what is there. A star stands where an article may; + marks a plural.
NOUNS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("{degree} cardiomegaly", "{degree} enlargement of the heart", "{degree} cardiac enlargement"),
    "wide mediastinum": ("mediastinal widening", "widening of the superior mediastinum"),
    "opacity": (
        "*hazy opacity in the {side} {site}",
        "*ill-defined {side} {adjective} opacity",
        "patchy airspace disease in the {side} {site}",
        "*{side} {adjective} infiltrate",
        "*faint {side} {adjective} airspace opacity",
        "*subtle infiltrate within the {side} {site}",
    ),
    "consolidation": (
        "dense consolidation in the {side} {site}",
        "{side} {adjective} consolidation",
        "*area of consolidation within the {side} {site}",
        "confluent {side} {adjective} consolidation",
    ),
    "pneumonia": (
        "{side} {adjective} pneumonia",
        "pneumonia in the {side} {site}",
        "multifocal pneumonia involving the {side} {site}",
        "patchy {side} {adjective} pneumonia",
    ),
    "small nodule": (
        "*small nodule in the {side} {site} lung zone",
        "*rounded pulmonary nodule in the {side} {site} zone",
        "*well-circumscribed {side} {site} lung nodule",
        "*subcentimeter nodule projecting over the {side} {site} lung",
    ),
    "large nodule": (
        "*large mass in the {side} {site} lung zone",
        "*{side} {site} lung mass",
        "*lobulated pulmonary mass in the {side} {site} zone",
        "*large nodule projecting over the {side} {site} lung",
    ),
    "atelectasis": (
        "linear atelectasis at the {side} lung base",
        "{side} basilar atelectasis",
        "plate-like atelectasis in the {side} lower lung",
        "discoid atelectasis of the {side} base",
        "subsegmental {side} basilar atelectasis",
    ),
    "atelectasis both": (
        "bibasilar atelectasis",
        "linear atelectasis at both lung bases",
        "bilateral basal atelectasis",
    ),
    "edema": (
        "{degree} pulmonary edema",
        "{degree} interstitial edema",
        "{degree} pulmonary vascular congestion",
        "{degree} perihilar edema",
    ),
    "pneumothorax": (
        "*{degree} {side} pneumothorax",
        "*{degree} {side} apical pneumothorax",
        "*{degree} pneumothorax on the {side}",
    ),
    "pleural effusion": (
        "*{degree} {side} pleural effusion",
        "*{degree} pleural effusion on the {side}",
        "*{degree} {side}-sided effusion",
        "*{degree} amount of {side} pleural fluid",
        "blunting of the {side} costophrenic angle from *{degree} effusion",
    ),
    "pleural effusion both": (
        "+{degree} bilateral pleural effusions",
        "+bilateral {degree} effusions",
        "+{degree} pleural effusions on both sides",
    ),
    "pleural thickening": (
        "{side} apical pleural thickening",
        "pleural thickening at the {side} apex",
        "{side} pleural scarring",
        "chronic {side} pleural thickening",
    ),
    "rib fracture": (
        "*{side} rib fracture",
        "*mildly displaced fracture of *{side} rib",
        "*acute {side} lateral rib fracture",
        "*fracture deformity of *{side} posterior rib",
    ),
    "endotracheal tube": (
        "*endotracheal tube with its tip above the carina",
        "*endotracheal tube in good position",
        "*ET tube terminating in the mid trachea",
    ),
    "central line": (
        "*{side} central venous catheter with tip in the superior vena cava",
        "*{side} internal jugular line terminating in the SVC",
        "*{side} central line in standard position",
    ),
    "pacemaker": (
        "*{side} chest wall pacemaker with intact leads",
        "*dual-lead {side}-sided pacemaker",
        "*{side} pectoral cardiac device with two leads",
    ),
    "ecg leads": ("+ECG leads overlying the chest", "+external monitoring wires", "+EKG wires and electrodes"),
}
# Whole sentences for what is there, and for what may be there.
STATED: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "The cardiac silhouette is {adverb} enlarged.",
        "Heart size is {adverb} increased.",
    ),
    "wide mediastinum": ("The mediastinum is widened.", "The mediastinal contour is abnormally wide."),
}
HEDGED: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("The heart may be {adverb} enlarged.", "The cardiac silhouette is possibly enlarged."),
    "wide mediastinum": ("The mediastinum may be widened.", "The mediastinum is possibly widened."),
}
DEGREES: dict[str, tuple[str, ...]] = {
    "mild": ("mild", "slight", "minimal"),
    "moderate": ("moderate",),
    "severe": ("severe", "marked", "pronounced"),
    "small": ("small", "tiny", "trace", "minimal"),
    "large": ("large", "extensive", "sizable"),
}
ADVERBS: dict[str, tuple[str, ...]] = {
    "mild": ("mildly", "slightly"),
    "moderate": ("moderately",),
    "severe": ("severely", "markedly", "massively"),
}
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "upper lobe": ("upper lobe", "apical"),
    "middle lobe": ("middle lobe",),
    "lower lobe": ("lower lobe", "basilar"),
    "lingula": ("lingular",),
}
PRESENT = (
    "There {is} {a}.",
    "{A} {is} seen.",
    "{A} {is} noted.",
    "{A} {is} present.",
    "{A} {is} identified.",
    "There {is} evidence of {a}.",
    "Findings are consistent with {a}.",
    "{A}.",
)
PRESENT_DEVICE = ("There {is} {a}.", "{A}.", "{A} {is} in place.", "{A} {is} noted.")
POSSIBLE = (
    "There may be {a}.",
    "Possible {bare}.",
    "{A} cannot be excluded.",
    "Findings may represent {a}.",
    "Questionable {bare}.",
    "{A} {is} suspected.",
    "Appearance is suggestive of possible {bare}.",
    "Cannot exclude {a}.",
)
PAIRED = (
    "There is {0} and {1}.",
    "{0} and {1} are seen.",
    "{0} along with {1}.",
    "There is {0}, together with {1}.",
    "{0} as well as {1}.",
)
MAYBE_PNEUMONIA = (
    "which may represent pneumonia",
    "possibly reflecting pneumonia",
    "suspicious for possible pneumonia",
    "pneumonia cannot be excluded",
)

LABEL_OF: dict[str, str] = {
    "cardiomegaly": "Cardiomegaly",
    "wide mediastinum": "Enlarged Cardiomediastinum",
    "opacity": "Lung Opacity",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "nodule": "Lung Lesion",
    "atelectasis": "Atelectasis",
    "edema": "Edema",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "rib fracture": "Fracture",
}
# What can be denied, in whose words, and how often; a class is not denied beside one that would contradict it.
DENIED: dict[str, tuple[float, tuple[str, ...]]] = {
    "Pleural Effusion": (0.62, ("pleural effusion", "effusion", "pleural fluid")),
    "Pneumothorax": (0.60, ("pneumothorax",)),
    "Consolidation": (0.36, ("consolidation", "focal consolidation", "lobar consolidation")),
    "Lung Opacity": (0.22, ("focal airspace disease", "infiltrate", "focal opacity", "airspace opacity")),
    "Edema": (0.22, ("pulmonary edema", "edema", "vascular congestion")),
    "Pneumonia": (0.16, ("pneumonia",)),
    "Lung Lesion": (0.10, ("suspicious nodule", "pulmonary nodule", "lung mass")),
    "Fracture": (0.12, ("acute fracture", "rib fracture", "displaced fracture")),
    "Atelectasis": (0.06, ("atelectasis",)),
    "Pleural Other": (0.05, ("pleural thickening",)),
}
CONTRADICTED: dict[str, tuple[str, ...]] = {
    "Lung Opacity": ("Consolidation", "Pneumonia", "Edema", "Atelectasis", "Lung Lesion"),
    "Consolidation": ("Pneumonia",),
    "Pneumonia": ("Consolidation", "Lung Opacity"),
    "Enlarged Cardiomediastinum": ("Cardiomegaly",),
    "Cardiomegaly": ("Enlarged Cardiomediastinum",),
}
DENIALS = ("No {}.", "There is no {}.", "No evidence of {}.", "No {} is seen.", "Negative for {}.")
NORMAL_HEART = (
    "Heart size is normal.",
    "The heart is normal in size.",
    "The cardiac silhouette is within normal limits.",
    "The heart is not enlarged.",
    "No cardiomegaly.",
)
NORMAL_MEDIASTINUM = (
    "The mediastinal contours are normal.",
    "The cardiomediastinal silhouette is unremarkable.",
    "Mediastinum is within normal limits.",
    "The mediastinum is not widened.",
)
NORMAL_BOTH = (
    "Heart size and mediastinal contours are normal.",
    "The heart and mediastinum are normal in size.",
    "Cardiac and mediastinal silhouettes are within normal limits.",
)
CLEAR_LUNGS = (
    "The lungs are clear.",
    "Lungs are clear bilaterally.",
    "The lungs are well expanded and clear.",
    "Clear lungs.",
    "Both lungs are well aerated.",
)
# Sentences without any label.
ASIDE = (
    "Bony structures are intact.",
    "The osseous structures are unremarkable.",
    "Degenerative changes of the thoracic spine.",
    "The trachea is midline.",
    "Visualized upper abdomen is unremarkable.",
    "Soft tissues are within normal limits.",
    "The hila are normal in appearance.",
    "Mild spondylosis without compression deformity.",
    "No free air beneath the diaphragm.",
    "Age-appropriate skeletal changes.",
    "Bony thorax appears normal for age.",
)
INTACT_BONES = (
    "Bony structures are intact.",
    "The osseous structures are unremarkable.",
    "Bony thorax appears normal for age.",
)
TORTUOUS = ("The aorta is mildly tortuous.", "Prominent, tortuous thoracic aorta.", "Aortic knob is prominent.")
OPENINGS = (
    "PA and lateral views of the chest were obtained.",
    "Two views of the chest.",
    "Frontal and lateral chest radiographs.",
    "The examination is slightly rotated.",
    "No prior study for comparison.",
    "Upright projections, full inspiration.",
    "Technically adequate exposure.",
)
CONCLUSIONS = (
    "No acute cardiopulmonary abnormality.",
    "No acute disease.",
    "Normal chest radiograph.",
    "No acute cardiopulmonary process.",
    "Unremarkable examination.",
)
